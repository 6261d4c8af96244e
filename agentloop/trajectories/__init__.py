"""The currency: codec (records to JSON), branches (trainable rows), redaction, chat format."""
