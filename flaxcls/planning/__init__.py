"""What a run would cost, and what it takes on the devices here."""
