"""Scores of neurons from gradients at the output of the down projection, without their gradients: see README.md."""
