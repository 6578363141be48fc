"""The recipe of the pocket pair: shape, data, phases, training, evaluation, model card; its router: labels, proof."""
