"""The words that English sentences are made of; ``sentences`` puts them together."""

from __future__ import annotations

ADJECTIVES = (
    "old", "young", "tired", "clever", "quiet", "nervous", "friendly", "stubborn", "careful",
    "hungry", "famous", "lonely", "cheerful", "angry", "patient", "brave", "curious", "elegant",
    "gentle", "honest", "impatient", "jealous", "kind", "lazy", "modest", "noisy", "polite",
    "proud", "restless", "serious", "shy", "silent", "skilful", "strict", "thoughtful", "wealthy",
)  # fmt: skip
PEOPLE = (
    "farmer", "teacher", "doctor", "sailor", "painter", "baker", "soldier", "lawyer", "student",
    "gardener", "carpenter", "engineer", "nurse", "pilot", "musician", "waiter", "hunter", "judge",
    "mechanic", "librarian", "photographer", "shepherd", "blacksmith", "journalist", "dentist",
    "plumber", "butcher", "tailor", "singer", "scientist", "neighbor", "grandmother", "uncle",
    "traveler", "merchant", "detective", "captain", "fisherman", "secretary", "tourist",
)  # fmt: skip
THINGS = (
    "a wooden ladder", "a leather suitcase", "the silver mirror", "a heavy blanket",
    "the broken bicycle", "a box of candles", "the copper kettle", "a bucket of water",
    "the yellow umbrella", "a bundle of firewood", "the rusty hammer", "a pair of boots",
    "the brass telescope", "a basket of lemons", "the blue curtain", "a set of keys",
    "the oak table", "a bag of feathers", "the iron anchor", "a roll of cloth",
    "the glass bottle", "a pile of newspapers", "the small violin", "a jar of honey",
    "the painted wagon", "a sack of potatoes", "the empty barrel", "a coil of rope",
    "the golden watch", "a stack of plates", "the marble statue", "a straw hat",
    "the woolen sweater", "a plastic bucket", "the brown envelope", "a tin of biscuits",
)  # fmt: skip
MOVES = (
    "carried", "dragged", "dropped", "found", "hid", "lost", "sold", "borrowed", "delivered",
    "wrapped", "bought", "placed", "forgot", "repaired", "left", "cleaned",
)  # fmt: skip
WRITINGS = (
    "a long letter", "the morning paper", "a short poem", "the history book", "a secret message",
    "the legal contract", "a shopping list", "the weather report", "a love story",
    "the old diary", "a medical report", "the school timetable", "a funny postcard",
    "the travel guide", "a detailed map", "the business plan",
)  # fmt: skip
READS = ("read", "copied", "translated", "signed", "studied", "finished", "printed", "received")
MEALS = (
    "a bowl of soup", "fresh bread", "a plate of rice", "roasted chicken", "an onion pie",
    "three boiled eggs", "fried fish", "a cup of tea", "tomato salad", "a slice of cake",
    "warm porridge", "grilled mushrooms", "pumpkin soup", "cheese and crackers",
    "cherry ice cream", "baked beans",
)  # fmt: skip
EATS = ("cooked", "ordered", "served", "tasted", "shared", "prepared", "enjoyed", "refused")
PLACES = (
    "in the garden", "near the harbor", "behind the church", "at the railway station",
    "under the bridge", "in the kitchen", "on the roof", "beside the river",
    "outside the theater", "in the village square", "at the market", "along the beach",
    "in the hospital", "next to the fountain", "inside the museum", "on the balcony",
    "at the end of the street", "in front of the bakery", "near the mountain lake",
    "by the window", "in the dark cellar", "at the airport", "behind the stable",
    "on the upper deck", "in the public library", "across the valley", "in the narrow tunnel",
    "at the old castle", "under the apple tree", "in a crowded room",
)  # fmt: skip
TIMES = (
    "Yesterday morning", "Last winter", "After breakfast", "On Monday evening", "Before sunrise",
    "Every Saturday", "Three weeks ago", "Shortly after midnight", "During the holidays",
    "One rainy afternoon", "At the end of April", "Late on Thursday", "In the early hours",
    "Two years later", "Just before dinner", "On the first day of school", "Some time ago",
    "At noon", "Last September", "On a cold Sunday", "During the storm", "After the concert",
)  # fmt: skip
SUBJECTS = (
    "the train", "the weather", "the engine", "the music", "the dog", "the snow", "the boat",
    "the crowd", "the fire", "the old clock", "the horse", "the wind", "the children",
    "the machine", "the guests", "the cat", "the river", "the telephone", "the birds",
    "the alarm", "the water", "the workers", "the lamp", "the door",
)  # fmt: skip
HAPPENED = (
    "moved very slowly", "made a strange noise", "stopped without warning",
    "was louder than usual", "could not be seen", "came closer and closer",
    "did not look right", "started all over again", "had already gone",
    "kept everybody awake", "had to wait outside", "surprised the whole town",
    "was still far away", "needed some attention", "disappeared behind the hills",
    "changed in a few minutes",
)  # fmt: skip
LINKS = ("because", "while", "although", "before", "after", "when", "until", "and", "but", "so")
NUMBERS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "fifteen", "twenty", "thirty",
)  # fmt: skip
