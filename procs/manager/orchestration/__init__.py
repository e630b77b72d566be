"""What the leader does to make tasks follow services: small components on one ordered stream of commits."""
