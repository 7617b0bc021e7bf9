#!/bin/sh
# What systemd does with Restart=always, in a few lines: whatever ends is started again; told to end, it tells the app.
trap 'kill "$app" 2>/dev/null; wait "$app"; exit 0' TERM INT
while true; do "$@" & app=$!; wait "$app"; done
