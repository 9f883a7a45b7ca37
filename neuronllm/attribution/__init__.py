"""From questions to scores: what was asked, the driver that does it, and which option a neuron pushes."""
