"""Denoising trains on pairs of a noisy and a clean photograph, or on clean photographs alone.

For the latter `DATA.DEGRADATION` names the noise, such as `gaussian25`. (MixUp blends whole
batches: the training loop does it.)
"""

from dgunet.data.crops import training_set, validation_set

training_data = training_set
validation_data = validation_set
