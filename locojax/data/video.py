"""Videos: random access to clips of files, folders of frames and records.

The names of the files `video_*.py`, in one place:

    videos = video.from_video_folder("videos")  # videos/<class>/<name>.mp4
    clips = video.Clips(videos, num_frames=16, rate=12.5, clips_per_video=4)
    clips[0]["clip"]  # uint8 [16, height, width, 3]

Reading files needs PyAV (extra `video`); the rest is NumPy.
"""

from __future__ import annotations

from locojax.data import (
  video_augment,
  video_clips,
  video_files,
  video_index,
  video_records,
  video_sampling,
  video_sets,
  video_types,
  video_writing,
)

# What a video is.
Video = video_types.Video
ArrayVideo = video_types.ArrayVideo
VideoError = video_index.VideoError
VideoIndex = video_index.VideoIndex
FileVideo = video_files.FileVideo
FrameFolderVideo = video_sets.FrameFolderVideo
read_index = video_index.read_index
open_video = video_sets.open_video
write_video = video_writing.write_video

# Sets of them.
VideoSet = video_sets.VideoSet
FileSet = video_sets.FileSet
ArraySet = video_sets.ArraySet
from_video_folder = video_sets.from_video_folder
from_files = video_sets.from_files
from_arrays = video_sets.from_arrays
from_video_records = video_records.from_video_records
write_video_records = video_records.write_video_records

# Clips of them.
MODES = video_sampling.MODES
clip_indices = video_sampling.clip_indices
clip_indices_at = video_sampling.clip_indices_at
frames_at = video_sampling.frames_at
Clips = video_clips.Clips
VideoRefs = video_clips.VideoRefs
RandomClips = video_clips.RandomClips
then = video_clips.then

# What is done to clips.
resize_short_side = video_augment.resize_short_side
random_resized_crop_clip = video_augment.random_resized_crop_clip
random_flip_clip = video_augment.random_flip_clip
centre_crop_clip = video_augment.centre_crop_clip
three_crops = video_augment.three_crops
