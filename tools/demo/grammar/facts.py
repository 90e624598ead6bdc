"""Facts the demo grammar asks for: countries, animals, elements, inventions, and lists of things."""

from __future__ import annotations

from .base import table


# country | capital | continent | main language | currency
COUNTRIES = table(
    """
France|Paris|Europe|French|euro
Germany|Berlin|Europe|German|euro
Spain|Madrid|Europe|Spanish|euro
Italy|Rome|Europe|Italian|euro
Portugal|Lisbon|Europe|Portuguese|euro
Greece|Athens|Europe|Greek|euro
Austria|Vienna|Europe|German|euro
Ireland|Dublin|Europe|English|euro
Finland|Helsinki|Europe|Finnish|euro
Sweden|Stockholm|Europe|Swedish|krona
Norway|Oslo|Europe|Norwegian|krone
Denmark|Copenhagen|Europe|Danish|krone
Poland|Warsaw|Europe|Polish|zloty
Hungary|Budapest|Europe|Hungarian|forint
Turkey|Ankara|Asia|Turkish|lira
Japan|Tokyo|Asia|Japanese|yen
China|Beijing|Asia|Chinese|yuan
India|New Delhi|Asia|Hindi|rupee
Thailand|Bangkok|Asia|Thai|baht
Vietnam|Hanoi|Asia|Vietnamese|dong
South Korea|Seoul|Asia|Korean|won
Indonesia|Jakarta|Asia|Indonesian|rupiah
Egypt|Cairo|Africa|Arabic|pound
Morocco|Rabat|Africa|Arabic|dirham
Kenya|Nairobi|Africa|Swahili|shilling
Ethiopia|Addis Ababa|Africa|Amharic|birr
Ghana|Accra|Africa|English|cedi
Brazil|Brasilia|South America|Portuguese|real
Argentina|Buenos Aires|South America|Spanish|peso
Chile|Santiago|South America|Spanish|peso
Peru|Lima|South America|Spanish|sol
Colombia|Bogota|South America|Spanish|peso
Mexico|Mexico City|North America|Spanish|peso
Canada|Ottawa|North America|English|dollar
Cuba|Havana|North America|Spanish|peso
Australia|Canberra|Oceania|English|dollar
"""
)

# animal | group | legs | food | home
ANIMALS = table(
    """
lion|mammal|4|meat|the savanna
elephant|mammal|4|grass and leaves|the savanna
dolphin|mammal|0|fish|the sea
bat|mammal|2|insects|caves
polar bear|mammal|4|seals|the Arctic
rabbit|mammal|4|grass|meadows
fox|mammal|4|mice and berries|forests
camel|mammal|4|dry plants|the desert
eagle|bird|2|small animals|mountains
penguin|bird|2|fish|the Antarctic
owl|bird|2|mice|forests
duck|bird|2|water plants|ponds
parrot|bird|2|seeds and fruit|rain forests
shark|fish|0|fish|the sea
salmon|fish|0|insects and small fish|rivers and the sea
frog|amphibian|4|insects|ponds
snake|reptile|0|small animals|many habitats
crocodile|reptile|4|meat|rivers
turtle|reptile|4|plants and small animals|the sea
bee|insect|6|nectar|hives
ant|insect|6|seeds and insects|nests in the ground
butterfly|insect|6|nectar|meadows
spider|arachnid|8|insects|webs
octopus|mollusk|0|crabs|the sea
"""
)

# thing | fact, which answers "Who ...?" or "When ...?"
HISTORY = table(
    """
Who invented the telephone?|Alexander Graham Bell patented the telephone in 1876.
Who painted the Mona Lisa?|Leonardo da Vinci painted the Mona Lisa around 1503.
Who wrote Romeo and Juliet?|William Shakespeare wrote Romeo and Juliet around 1595.
Who discovered penicillin?|Alexander Fleming discovered penicillin in 1928.
Who was the first person on the Moon?|Neil Armstrong was the first person on the Moon, in 1969.
Who developed the theory of relativity?|Albert Einstein developed the theory of relativity, from 1905 on.
Who composed the Ninth Symphony with the Ode to Joy?|Ludwig van Beethoven composed it; it was first played in 1824.
Who wrote Don Quixote?|Miguel de Cervantes wrote Don Quixote; it appeared in 1605.
Who wrote Faust?|Johann Wolfgang von Goethe wrote Faust; the first part appeared in 1808.
Who discovered radium?|Marie and Pierre Curie discovered radium in 1898.
Who built the first practical airplane?|The Wright brothers flew the first airplane in 1903.
Who wrote the first computer program?|Ada Lovelace wrote the first computer program in 1843.
When did the Berlin Wall fall?|The Berlin Wall fell on November 9, 1989.
When did the First World War begin?|The First World War began in 1914 and ended in 1918.
When did the Second World War end?|The Second World War ended in 1945.
When did the French Revolution begin?|The French Revolution began in 1789.
When did Columbus reach America?|Columbus reached America in 1492.
When was the Eiffel Tower finished?|The Eiffel Tower was finished in 1889.
Which planet is the largest?|Jupiter is the largest planet of our solar system.
Which planet is closest to the Sun?|Mercury is the planet closest to the Sun.
Which river is the longest in Africa?|The Nile is the longest river in Africa.
Which mountain is the highest on Earth?|Mount Everest is the highest mountain, at 8,849 meters.
Which ocean is the largest?|The Pacific is the largest ocean.
Which metal is liquid at room temperature?|Mercury is liquid at room temperature.
Which gas do plants take from the air?|Plants take carbon dioxide from the air.
How many bones does an adult have?|An adult has 206 bones.
How many continents are there?|There are seven continents.
How many days does a leap year have?|A leap year has 366 days.
How fast does light travel?|Light travels at about 300,000 kilometers per second.
At what temperature does water boil?|Water boils at 100 degrees Celsius at sea level.
Why is the sky blue?|Air scatters blue light more than red light, so blue reaches us from all sides.
Why do leaves change color in autumn?|Trees break down the green pigment, and the yellow and red ones become visible.
Why do cats purr?|Cats purr when they are content, and sometimes to calm themselves.
Why is the sea salty?|Rivers wash salts out of rocks and carry them to the sea, where water evaporates and salt stays.
Why do we have seasons?|The axis of the Earth is tilted, so each half gets more sun during one part of the year.
Why does ice float?|Ice is less dense than water, because its molecules are farther apart.
"""
)

# element | symbol | use
ELEMENTS = table(
    """
hydrogen|H|fuel
helium|He|balloons
carbon|C|steel
nitrogen|N|fertilizer
oxygen|O|breathing
sodium|Na|salt
aluminum|Al|cans
silicon|Si|computer chips
sulfur|S|rubber
iron|Fe|bridges
copper|Cu|wires
zinc|Zn|roofs
silver|Ag|mirrors
tin|Sn|solder
gold|Au|jewelry
mercury|Hg|old thermometers
lead|Pb|batteries
"""
)

# plural | eight of them; every item fits every answer that lists them
LISTS = table(
    """
fruits|apple, banana, orange, pear, grape, cherry, mango, kiwi
vegetables|carrot, tomato, onion, pepper, spinach, cabbage, pea, bean
colors|red, blue, green, yellow, orange, purple, brown, black
musical instruments|piano, guitar, violin, flute, drum, trumpet, harp, cello
sports|football, tennis, swimming, basketball, running, cycling, boxing, rowing
farm animals|cow, pig, sheep, goat, horse, chicken, duck, donkey
wild animals|lion, tiger, bear, wolf, fox, deer, elephant, giraffe
birds|eagle, owl, duck, parrot, swan, crow, robin, penguin
trees|oak, pine, birch, maple, willow, beech, cedar, elm
flowers|rose, tulip, lily, daisy, sunflower, orchid, violet, poppy
professions|teacher, doctor, baker, nurse, pilot, lawyer, carpenter, engineer
programming languages|Python, Java, JavaScript, C, Rust, Go, Ruby, Swift
planets|Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune
European cities|Paris, London, Berlin, Rome, Madrid, Vienna, Lisbon, Athens
rivers|Nile, Amazon, Danube, Rhine, Ganges, Volga, Congo, Mississippi
kitchen tools|knife, spoon, pan, pot, whisk, grater, peeler, bowl
pieces of furniture|table, chair, sofa, bed, desk, shelf, wardrobe, bench
clothes|shirt, jacket, scarf, hat, sock, dress, coat, glove
spices|salt, pepper, cinnamon, ginger, paprika, cumin, basil, thyme
school subjects|math, history, biology, art, music, physics, chemistry, geography
hobbies|reading, painting, gardening, cooking, hiking, chess, photography, dancing
vehicles|car, bus, train, bicycle, ship, tram, truck, plane
languages|English, Spanish, French, German, Chinese, Arabic, Hindi, Swahili
emotions|joy, anger, fear, sadness, surprise, pride, hope, shame
breakfast foods|bread, eggs, yogurt, porridge, cereal, pancakes, fruit, cheese
"""
)
