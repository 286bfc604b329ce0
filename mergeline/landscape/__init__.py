"""Loss between models: on the plane through three of them, and along lines."""
