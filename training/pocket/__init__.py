"""The recipe of the pocket pair: shape, data, stages, training, labels, model card."""
