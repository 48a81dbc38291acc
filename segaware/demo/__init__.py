"""``segaware demo``: a page in the browser to look at what a denoiser does, on this machine alone (extra ``demo``)."""
