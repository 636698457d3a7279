"""One module per kind of measurement; each function measures one side once."""
