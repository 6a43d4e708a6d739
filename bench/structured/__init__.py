"""How well the structured items of an impression are read: precision and recall of each field."""
