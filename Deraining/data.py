"""Deraining trains on pairs of a rainy and a clean photograph."""

from restoration.data import training_set, validation_set

training_data = training_set
validation_data = validation_set
