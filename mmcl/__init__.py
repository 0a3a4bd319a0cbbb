"""Multimodal continual learning: train a vision-language model on a stream of image-text tasks, measure what it forgot."""

__version__ = "0.1.0"
