"""Read and write photographs: PNG, JPEG, WebP, HEIC, AVIF, JPEG XL and raw."""
