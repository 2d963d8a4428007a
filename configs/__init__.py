"""The Hydra tree; this file makes it a package, which Hydra asks of a search path."""
