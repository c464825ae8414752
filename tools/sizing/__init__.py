"""How many workers, databases and NATS servers a load needs: the formulas, a plan, and a simulation of it."""
