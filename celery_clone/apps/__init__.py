"""Programs: what is around a worker, a beat or a cluster when it is a process of its own."""
