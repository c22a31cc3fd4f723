"""What a version of the model costs: MACs, parameters, bytes, peak memory, roofline."""
