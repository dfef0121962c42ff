"""What a person looks at: the record, samples and transcripts, statistics, bands that are watched, the model card.

Plain values in, files and sentences out; nothing here samples, scores or trains.
"""
