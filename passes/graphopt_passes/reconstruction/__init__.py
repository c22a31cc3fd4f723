"""Layer-wise reconstruction: the compressed network beside the original, layer by layer, on the calibration samples."""
