"""Read and write TIFF: pictures, stacks, OME-TIFF and ImageJ hyperstacks."""
