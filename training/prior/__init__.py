"""The prior for the real 2B pair: published scores as soft labels over prompts of the benchmarks' kinds."""
