"""How well the faithfulness checks see injected errors."""
