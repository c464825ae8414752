"""The demonstration and the load generator."""
