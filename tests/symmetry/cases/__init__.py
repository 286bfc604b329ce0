"""Programs for single operations, by kind."""
