"""From noise to latents: sigmas, noise, guidance, solvers and the one loop that drives them."""
