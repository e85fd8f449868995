"""What writes episodes, one file per format. Each writes what is missing of a folder, so a killed one continues."""
