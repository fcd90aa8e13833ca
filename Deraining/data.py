"""Deraining trains on pairs of a rainy and a clean photograph."""

from dgunet.data.crops import training_set, validation_set

training_data = training_set
validation_data = validation_set
