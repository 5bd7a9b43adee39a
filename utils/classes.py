"""The seven expressions of FER2013."""

# In FER2013's order: class 0 comes first.
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
