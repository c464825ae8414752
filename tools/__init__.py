"""What only the people working on the project run."""
