"""Forms that ask for advice, plans and ideas, and forms that play a role."""

# ruff: noqa: D103 (a form is described by its name and its instructions)

from __future__ import annotations

import random

from .base import NUMBER_WORDS, Exchange, bullets, form, table, upper_first
from .general import PERSONS, to_you


# goal | obstacle | what helps
PROBLEMS = table(
    """
sleep better|I lie awake for hours|go to bed at the same time every day;put your phone away an hour earlier;drink no coffee after lunch
wake up earlier|I am tired every morning|go to bed earlier;put the alarm across the room;open the curtains at once
eat healthier|I have no time to cook|cook for three days at once;keep fruit on the table;drink water instead of soda
save more money|I spend too much on small things|write down every purchase;set a weekly limit;move money away on payday
make new friends|I am very shy|join a small club;ask simple questions;meet the same people every week
find a new job|I get no replies|ask someone to read your letter;apply to fewer but better places;call after a week
finish my thesis|I keep putting it off|write for 25 minutes a day;start with the easiest part;agree on dates with a friend
read more books|I always fall asleep|read in the afternoon;choose shorter books;carry one wherever you go
stay calm in exams|my heart races|practice with a clock;breathe slowly before you begin;start with a question you know
learn faster|I forget everything after a week|test yourself;repeat after a day and after a week;explain it to someone
stop arguing with my brother|we fight about small things|wait before you answer;say what you need;agree on clear rules
keep my desk tidy|papers pile up everywhere|clear it every evening;keep one tray for papers;throw away what is old
get fit|I hate the gym|walk to work;find a sport that is fun;start with ten minutes a day
use my phone less|I check it every few minutes|turn off notifications;leave it in another room;set fixed times for messages
get along with my boss|she changes plans every day|ask for priorities in writing;repeat what you agreed on;talk about it calmly
keep my plants alive|their leaves turn yellow|water them less;move them to the light;change the soil in spring
drink more water|I simply forget|keep a bottle on your desk;drink a glass with every meal;set a reminder
move to a new city|I know nobody there|visit it first;join a group online;keep the first month free
"""
)

# thing to plan | what belongs on the days
PLANS = table(
    """
trip to Paris|visit the Eiffel Tower;walk along the Seine;see the Louvre;eat in a small bistro;take a day trip to Versailles
trip to Rome|see the Colosseum;visit the Vatican;eat ice cream at a fountain;walk through old streets;relax in a park
trip to Berlin|see the Brandenburg Gate;visit the Museum Island;walk along the Wall;rent a bicycle;try the local food
trip to Tokyo|visit a temple;see the fish market;ride the train to the bay;walk in a garden;eat noodles
workout week|run for twenty minutes;train your arms;rest and stretch;train your legs;go for a long walk
study week|read the first chapter;write a summary;solve ten exercises;test yourself;repeat what was hard
week of simple dinners|vegetable soup;pasta with tomatoes;rice with beans;baked potatoes;fish with salad
spring cleaning|clean the kitchen;sort the clothes;wash the windows;clear the cellar;tidy the desk
week without screens|read a book;cook something new;visit a friend;play a board game;go for a walk
move to a new flat|pack the books;pack the kitchen;clean the old rooms;carry the furniture;unpack the beds
"""
)

# what to find ideas for | ideas
IDEAS = table(
    """
a birthday party|a treasure hunt;a pizza evening;a costume party;a picnic by the lake;a movie night;a karaoke contest
a rainy afternoon|bake a cake;build a fort;play a board game;write letters;watch an old film;sort photos
a school project|a model of a volcano;a weather diary;a small garden;a class newspaper;a map of the town;a water filter
a gift for a friend|a book;a potted plant;a homemade jam;a photo album;a concert ticket;a warm scarf
a small business|a bicycle repair shop;a plant nursery;a bakery cart;a tutoring service;a pet hotel;a secondhand shop
a podcast|stories of old trades;interviews with neighbors;the history of food;songs and their makers;life at sea;small inventions
a team event|a cooking class;a hike;a quiz night;a canoe trip;a museum visit;a soccer match
a family weekend|a bike tour;a visit to the zoo;camping in the garden;a puzzle day;a boat trip;baking bread
names for a cat|Luna;Oscar;Misty;Felix;Pepper;Simba
names for a coffee shop|The Daily Bean;Corner Cup;Morning Light;Brown Sugar;The Quiet Mug;Second Sip
names for a bookstore|The Last Page;Paper Moon;The Reading Room;Ink and Tea;The Open Book;Chapter One
ways to reduce waste|carry a cloth bag;repair old things;buy in bulk;compost leftovers;share tools;use both sides of paper
"""
)

# role | how it speaks | what it says of its work
ROLES = table(
    """
a pirate captain|Ahoy, friend!|We sailed through storms and found gold under a palm tree
a medieval knight|Greetings, noble traveler!|I guard the castle gate and train with my sword at dawn
a friendly robot|Hello, human.|My battery is full and I am ready to count every star
an old wizard|Ah, you have found my tower.|I brew potions by night and talk to owls by day
a tour guide in Rome|Welcome, everyone!|On your left you see the Colosseum, nearly two thousand years old
a grumpy cat|What do you want now?|I slept on the sofa all day and my bowl is still half empty
a space explorer|Mission log, day 12.|The red planet is quiet and the dust shines in the evening sun
a strict librarian|Quiet, please.|Every book has its place, and every place has its book
a detective|I noticed your muddy shoes at once.|The clock stopped at nine, so the gardener is lying
a chef|Come in, the soup is hot!|I chop, I stir and I taste until the kitchen smells of basil
"""
)


@form("general", 2.0)
def advice(rng: random.Random) -> Exchange:
    goal, obstacle, help_text = rng.choice(PROBLEMS)
    helps = help_text.split(";")
    person = rng.choice(PERSONS)
    instruction = rng.choice(
        [
            f"I want to {goal}, but {obstacle}. What should I do?",
            f"How can I {goal}?",
            f"I am {person}. I would like to {goal}, but {obstacle}. Do you have any advice?",
            f"Please help me.\n\nMy goal: {goal}\nMy problem: {obstacle}\n\nWhat would you do in my place?",
        ]
    )
    answer = f"To {to_you(goal)}, try this:\n\n{bullets([upper_first(item) + '.' for item in helps])}"
    exchange = Exchange("advice", "Advice seeking", "medium", goal, instruction, answer)
    return exchange.then(
        rng.choice(["Which of these should I try first?", "Where should I begin?"]),
        f"Begin with the first one: {helps[0]}.",
    )


@form("general", 1.5)
def plan(rng: random.Random) -> Exchange:
    thing, items_text = rng.choice(PLANS)
    items = items_text.split(";")
    count = rng.randint(2, 5)
    person = rng.choice(PERSONS)
    instruction = rng.choice(
        [
            f"Plan a {NUMBER_WORDS[count]}-day {thing}.",
            f"Make a plan of {count} days for a {thing}.",
            f"I am {person}. Please plan {count} days for a {thing}, one line a day.",
        ]
    )
    lines = [f"Day {day}: {item}" for day, item in enumerate(items[:count], 1)]
    exchange = Exchange(
        "plan", "Planning", "medium" if count < 4 else "hard", thing, instruction,
        f"Here is a plan for {count} days:\n\n" + "\n".join(lines),
    )  # fmt: skip
    day = rng.randint(1, count)
    exchange = exchange.then(f"What do I do on day {day}?", f"On day {day}: {items[day - 1]}.")
    if count < 5:
        exchange = exchange.then("Add one more day.", "\n".join([*lines, f"Day {count + 1}: {items[count]}"]))
    return exchange


@form("general", 1.5)
def brainstorm(rng: random.Random) -> Exchange:
    thing, ideas_text = rng.choice(IDEAS)
    ideas = ideas_text.split(";")
    count = rng.randint(2, 5)
    word, purpose = NUMBER_WORDS[count], rng.choice(PERSONS)
    what = thing if thing.startswith(("names", "ways")) else f"ideas for {thing}"
    instruction = rng.choice(
        [f"Suggest {word} {what}.", f"I need {count} {what}.", f"Brainstorm {word} {what}. I am {purpose}."]
    )
    answer = f"Here are {word} {what}:\n\n{bullets([upper_first(idea) for idea in ideas[:count]])}"
    exchange = Exchange("brainstorm", "Brainstorming", "easy", thing, instruction, answer)
    return exchange.then("Give me one more.", f"One more: {ideas[count]}.").then(
        "Which one do you like best?", f"I like the first one best: {ideas[0]}."
    )


@form("general", 1.2)
def role_play(rng: random.Random) -> Exchange:
    role, greeting, report = rng.choice(ROLES)
    person = rng.choice(PERSONS)
    instruction = rng.choice(
        [
            f"Act as {role}. How was your day?",
            f"Pretend to be {role} and greet me.",
            f"You are {role} and I am {person}. Tell me about your work.",
            f"Let us play a game. You are {role}, and you answer in two sentences.\n\nWhat have you been doing today?",
        ]
    )
    exchange = Exchange("role_play", "Role playing", "medium", role, instruction, f"{greeting} {report}.")
    return exchange.then("Say goodbye in that role.", f"Farewell from {role}! Come back soon.")
