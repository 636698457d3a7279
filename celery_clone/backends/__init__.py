"""Where results are kept: one module for each store, and the classes they are made of."""
