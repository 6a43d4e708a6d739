"""A training run that cannot be lost: recipe, folder, checkpoints, processes, figures."""
