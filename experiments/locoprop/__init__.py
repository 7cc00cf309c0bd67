"""The deep-autoencoder benchmark of LocoProp and its peers."""
