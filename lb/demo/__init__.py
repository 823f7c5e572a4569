"""The demonstration: backends that say their name, and a load that counts who answered."""
