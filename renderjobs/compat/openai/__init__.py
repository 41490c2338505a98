"""The door for clients of OpenAI's images API. Translates it to and from a job; nothing of OpenAI's stands anywhere else."""
