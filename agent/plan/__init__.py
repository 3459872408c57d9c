"""What a migration would be, and what speaks against it; nothing of the guest is changed."""
