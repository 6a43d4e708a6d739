"""Is an impression supported by its report: read without a language model."""
