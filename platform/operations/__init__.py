"""Pages and commands for those who run the platform: launcher, demo, health, invariants. Nothing imports this package."""
