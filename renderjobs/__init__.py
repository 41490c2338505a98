"""From request to rows, from outcome to result: jobs, images, claims, deliveries and the doors that lead here."""
