"""Evidence: what a task model's own data say about its parameters, for the methods that weigh models by it."""
