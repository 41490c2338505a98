"""From latents to pictures."""
