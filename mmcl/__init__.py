"""Multimodal continual learning: train a vision-language model on a stream of tasks, measure what it forgot."""

__version__ = "0.1.0"
