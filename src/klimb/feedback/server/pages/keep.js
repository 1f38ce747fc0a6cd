"use strict";

// What the browser keeps: one item each, and none where it keeps nothing.

const DRAFTS = "klimb-drafts"; // notes that are being written: { rater, notes: { store: { shown, note } } }

function store(place, name, value) {
  try {
    if (value === null) place.removeItem(name);
    else place.setItem(name, value);
  } catch {
    // a browser that keeps nothing: the answer is still kept in the page
  }
}

function recall(place, name) {
  try {
    return place.getItem(name);
  } catch {
    return null;
  }
}

// Of the rater who is judging now; what another rater left in this browser is not read, and not kept.
function readDrafts(rater) {
  try {
    const kept = JSON.parse(recall(localStorage, DRAFTS) ?? "null");
    return kept?.rater === rater ? kept.notes : {};
  } catch {
    return {}; // not ours
  }
}

function writeDrafts(rater, notes) {
  const isEmpty = Object.keys(notes).length === 0;
  store(localStorage, DRAFTS, isEmpty ? null : JSON.stringify({ rater, notes }));
}

// Keep a note over a reload of the page; an empty one is forgotten.
function keepDraft(place, note) {
  const { [place.store]: _, ...others } = readDrafts(place.rater);
  writeDrafts(place.rater, note === "" ? others : { ...others, [place.store]: { shown: place.shown, note } });
}

function recallDraft(place) {
  const draft = readDrafts(place.rater)[place.store];
  return draft?.shown === place.shown ? draft.note : "";
}

// Forget the note of a pair that is no longer asked about.
function pruneDrafts(place) {
  keepDraft(place, recallDraft(place));
}
