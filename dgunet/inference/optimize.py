"""Placeholder until the redesign replaces `prepared`."""

from dgunet.inference.prepared import prepare as optimize_for_inference

__all__ = ["optimize_for_inference"]
