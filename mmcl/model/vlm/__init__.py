"""Ready vision-language models of transformers, taken apart into encoder, projector and language model."""
