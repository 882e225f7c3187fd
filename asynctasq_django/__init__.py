"""AsyncTasQ in Django: configured by settings, transactional where the database allows, seen in the admin."""
