"""What the demo grammar knows about concepts and skills, as tables."""

from __future__ import annotations

from .base import table


# name | field | what it is | why it matters | an example
CONCEPTS = table(
    """
photosynthesis|biology|the process by which plants turn light, water and air into sugar|it feeds almost all life on Earth|a leaf that makes sugar on a sunny day
evolution|biology|the slow change of living things over many generations|it explains why there are so many species|moths that became darker in cities full of smoke
a cell|biology|the smallest unit of life|every plant and animal is built from it|a red blood cell that carries oxygen
DNA|biology|a long molecule that stores how a living thing is built|it passes traits from parents to children|the gene that decides the color of your eyes
an ecosystem|biology|a community of living things and the place they live in|a change in one part affects all the others|a pond with fish, plants and insects
gravity|physics|the force that pulls things with mass toward each other|it keeps the planets on their paths|an apple that falls from a tree
friction|physics|the force that slows things that rub against each other|without it we could not walk|brakes that stop a bicycle
energy|physics|the ability to do work|every machine needs it|a battery that makes a lamp shine
magnetism|physics|the force between magnets or moving charges|motors and compasses depend on it|a compass needle that points north
density|physics|how much mass fits into a given space|it decides what floats and what sinks|oil that floats on water
an atom|chemistry|the smallest piece of an element|everything around us is made of it|a single atom of gold in a ring
a chemical reaction|chemistry|a change that turns some substances into others|cooking and burning depend on it|iron that rusts in the rain
an acid|chemistry|a substance that gives away hydrogen in water|it is used in food, batteries and cleaning|the juice of a lemon
a catalyst|chemistry|a substance that speeds up a reaction without being used up|it saves energy in industry|the metal in the exhaust of a car
a volcano|geography|an opening in the ground from which hot rock escapes|it builds new land and rich soil|Mount Etna in Italy
an earthquake|geography|a sudden shaking of the ground|it can damage whole cities|two plates of rock that slip past each other
the water cycle|geography|the movement of water between sea, air and land|it brings rain to the fields|a puddle that dries up and returns as rain
a glacier|geography|a large body of ice that moves slowly|it stores fresh water and shapes valleys|the ice that fills a high valley in the Alps
climate|geography|the usual weather of a place over many years|it decides what can grow there|the dry heat of a desert
democracy|society|a system in which the people choose their leaders|it gives everyone a voice|an election for a city council
inflation|economics|a general rise of prices over time|it makes savings worth less|bread that costs more than last year
supply and demand|economics|the way sellers and buyers settle on a price|it explains why rare things cost more|umbrellas that get expensive on a rainy day
a budget|economics|a plan for what you earn and what you spend|it keeps you out of debt|setting aside 50 dollars a week for food
compound interest|economics|interest that is paid on earlier interest too|it makes savings grow faster every year|100 dollars that become 121 in two years at 10 percent
a monopoly|economics|a market with only one seller|it can keep prices high|a town with a single water company
an algorithm|computing|a list of clear steps that solves a problem|every program is built from it|a recipe for sorting a pile of cards
recursion|computing|a method that solves a problem by calling itself on a smaller one|it makes code for trees and lists short|a function that computes 5! from 4!
a database|computing|an ordered store of data that can be searched|shops and banks rely on it|a table of customers and their orders
a variable|computing|a name for a value in a program|it lets a program remember things|a counter that grows by one
encryption|computing|the scrambling of data so that only some can read it|it protects messages and payments|a chat that only two phones can read
machine learning|computing|a way for programs to learn rules from examples|it finds patterns that are hard to write down|a filter that learns what spam looks like
binary search|computing|a search that halves a sorted list at every step|it finds an item among millions in a few steps|looking up a name in a phone book
a hash table|computing|a store that finds a value by its key at once|it makes lookups fast|a dictionary in Python
version control|computing|a record of every change made to files|it lets a team work without losing anything|a project kept in Git
an API|computing|a set of rules by which programs talk to each other|it lets apps share data|a weather app that asks a server for the forecast
a metaphor|language|a figure of speech that calls one thing by the name of another|it makes writing vivid|calling time a thief
a haiku|language|a short poem of three lines with 5, 7 and 5 syllables|it trains you to choose words well|a poem about a frog in an old pond
an adverb|language|a word that tells how something is done|it adds detail to a verb|the word slowly in: she walks slowly
alliteration|language|the repetition of first sounds in nearby words|it makes a line easy to remember|Peter picked a pepper
the Renaissance|history|a time of new art and science in Europe after the Middle Ages|it shaped how we see the world|the paintings of Leonardo da Vinci
the Industrial Revolution|history|the change from hand work to machines after 1760|it moved people from farms to cities|steam engines in cotton mills
the Silk Road|history|a net of trade routes between China and Europe|it spread goods, ideas and religions|caravans that carried silk to Rome
the printing press|history|a machine that copies text with movable letters|it made books cheap|the Bible that Gutenberg printed
a fraction|mathematics|a number that counts equal parts of a whole|it lets us share fairly|half of a pizza
a prime number|mathematics|a number above one that only one and itself divide|it is the base of modern encryption|the number 17
probability|mathematics|a measure of how likely something is|it helps us decide under uncertainty|one chance in six to roll a four
a function|mathematics|a rule that gives one output for every input|it describes how things depend on each other|the area of a square for a given side
the median|mathematics|the middle value of sorted numbers|it is not moved by a few extreme values|the number 5 in the list 1, 5, 90
meditation|health|the practice of calm attention|it lowers stress|sitting still and counting ten breaths
a vaccine|health|a substance that trains the body to fight a disease|it prevents many deaths|the shot against measles
protein|health|a nutrient that builds and repairs the body|muscles are made of it|the white of an egg
sleep|health|a daily state of rest for body and mind|it repairs the body and sorts memories|a night of eight hours in a dark room
rhythm|music|the pattern of long and short sounds in time|it makes us want to move|the steady beat of a drum
a chord|music|three or more notes played together|it gives a song its mood|the notes C, E and G on a piano
perspective|art|a way to show depth on a flat surface|it makes a picture look real|a road that gets narrow toward the horizon
a sculpture|art|a work of art in three dimensions|it can be seen from every side|a lion carved from stone
"""
)

# gerund | steps | tips | a common mistake
SKILLS = table(
    """
gardening|choose a sunny spot;loosen the soil;sow easy seeds such as radish;water in the morning|start small;pull weeds every week;use compost|watering too much
cooking|read the whole recipe;prepare all ingredients;cook on medium heat;taste and add salt|keep your knife sharp;clean as you go;start with soups|using too much heat
baking bread|mix flour, water, salt and yeast;knead the dough for ten minutes;let it rise for an hour;bake it until it sounds hollow|weigh your ingredients;use warm water;be patient|not letting the dough rise
running|get good shoes;warm up for five minutes;run slowly for ten minutes;rest for a day|increase the distance slowly;drink enough;run with a friend|running too fast
swimming|learn to breathe out under water;practice floating;kick from the hips;add the arms|relax your neck;use short sessions;watch good swimmers|lifting the head
yoga|find a quiet place;roll out a mat;learn five simple poses;breathe slowly|never force a pose;practice in the morning;follow a class|holding your breath
drawing|get a soft pencil;draw simple shapes;copy objects around you;add light and shadow|draw every day;look more than you draw;keep old sketches|pressing too hard
painting|buy three basic colors;learn to mix them;paint large areas first;add details last|clean your brushes;work from light to dark;study one painter|using too many colors
playing the guitar|tune the strings;learn three chords;change chords slowly;play a simple song|practice ten minutes a day;use a metronome;keep your nails short|playing too fast
playing the piano|sit up straight;learn the names of the keys;play a scale with one hand;join both hands|practice slowly;listen to recordings;count aloud|ignoring the rhythm
chess|learn how the pieces move;control the center;bring out your knights;bring your king to safety|solve a puzzle a day;study your losses;think before each move|moving the queen too early
photography|learn what your camera can do;look for good light;fill the frame;hold the camera still|shoot in the morning;take many pictures;keep the background simple|putting everything in the middle
writing|choose one idea;write a rough draft;cut what is not needed;read it aloud|write every day;use short sentences;ask for feedback|editing too early
public speaking|know your audience;write three main points;practice aloud;look at the listeners|speak slowly;smile at the start;use pauses|reading from the slides
learning a language|learn the 100 most common words;listen every day;speak from the first week;read simple texts|use flash cards;find a partner;label things at home|fearing mistakes
programming|choose one language;write a tiny program;read error messages;build a small project|type the code yourself;test often;ask for reviews|copying without understanding
investing|pay off your debts;save three months of expenses;choose a broad fund;invest a fixed sum each month|keep costs low;think in years;do not follow the crowd|selling in a panic
saving money|write down what you spend;set a goal;move money on payday;cancel what you do not use|cook at home;wait a day before buying;compare prices|saving only what is left
time management|list your tasks;choose the three most important;block time for them;review the day|turn off notifications;take short breaks;say no more often|doing many things at once
studying|set a clear goal;read actively;test yourself;repeat after a day|study in short blocks;teach a friend;sleep enough|reading the same page again and again
hiking|choose an easy trail;check the weather;pack water and a map;start early|wear good boots;tell someone your route;turn back in time|carrying too much
camping|find a legal place;put up the tent in daylight;store food safely;leave no trash|bring a lamp;practice at home;check the weather|forgetting warm clothes
knitting|choose thick yarn;learn to cast on;practice the knit stitch;make a simple scarf|count your stitches;keep the yarn loose;watch a video|pulling the yarn too tight
woodworking|wear safety glasses;measure twice;cut slowly;sand the edges|start with soft wood;keep tools sharp;make a plan|skipping the measuring
cycling|check the brakes;set the saddle height;ride on quiet roads;learn to signal|wear a helmet;keep the chain clean;look ahead|riding without lights
dancing|listen to the beat;learn one basic step;repeat it slowly;add the arms|use a mirror;wear light shoes;have fun|looking at your feet
singing|stand up straight;breathe from the belly;warm up your voice;sing a simple song|drink water;record yourself;do not shout|singing from the throat
fishing|get a license;choose a calm lake;use simple bait;wait quietly|go early;check the knots;handle fish gently|making noise
keeping a journal|buy a notebook;choose a fixed time;write five lines;read old pages each month|be honest;skip perfect grammar;keep it near your bed|stopping after a missed day
raising a puppy|prepare a quiet corner;feed it at fixed times;take it out often;reward good behavior|be patient;use short lessons;meet other dogs|shouting at it
keeping bees|join a local club;place the hive in the sun;wear a veil;check the hive each week|move slowly;leave enough honey;keep notes|opening the hive in the cold
making coffee|grind fresh beans;heat the water;pour slowly;serve it at once|use clean water;weigh the beans;warm the cup|using boiling water
learning to code in Python|install Python;print a line of text;learn loops and lists;write a small game|use a good editor;read other code;practice every day|skipping the basics
building a website|write the content;make a simple page;add a style sheet;put it on a server|test on a phone;keep it light;check your links|starting with the colors
negotiating|know what you want;find out what they need;make the first offer;ask for time|stay calm;listen more than you talk;write it down|taking it personally
job interviews|read about the company;prepare three stories;dress well;ask good questions|arrive early;give short answers;send a thank you note|speaking badly of an old boss
meditating|sit in a quiet place;close your eyes;count your breaths;return when your mind wanders|start with five minutes;use a timer;be kind to yourself|expecting quick results
recycling|sort your trash;rinse the bottles;flatten boxes;learn the local rules|keep a bin for paper;buy less plastic;reuse jars|mixing food with paper
"""
)
