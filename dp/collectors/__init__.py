"""Who makes demonstrations, and how they are recorded. A collector is one file and one YAML."""

from dp.collectors.demonstration import Collector, Demonstration, Finished, Recorder, replay

__all__ = ["Collector", "Demonstration", "Finished", "Recorder", "replay"]
