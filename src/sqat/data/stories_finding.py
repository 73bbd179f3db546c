"""Plots about looking for something and finding it, in the language of `stories_template`."""

LOST_TOY = """
@alone
@hobby
{hero} had {toy.a}.
| {hero.Their} [favorite|best] toy was {toy.a}.
| {hero} had {toy.a} and took it everywhere.

{one_day}, {hero} [took|brought] the {toy} to the {place} to play with a friend named {friend}.
| {one_day}, {hero} and a friend named {friend} played with the {toy} {place.at} {place}.
They [ran and laughed|played and sang|had a lot of fun] until they were [tired|hungry].
|
Then they [went|walked] to the {place2} to [rest|sit down|share {food.a}].
There, {hero} began to cry. "Where is my ^{toy}?"
| All at once, {hero} [stopped|jumped up]. "Oh no! Where is my ^{toy}?"
| "Oh no," said {hero}. "I do not have my ^{toy}!"

{friend} thought [about it|for a while]. "We played with it {place.at} ^{place}," {friend.they} said.
| "Do not [cry|worry]," said {friend}. "I think you left it {place.at} ^{place}."
So {hero} and ^{friend} [ran|hurried|went] back to the ^{place}.
They looked [here and there|high and low|all around] and [found|saw] the ^{toy.colour} ^{toy}.
| There it was! The {toy.colour} ^{toy} was [on the ground|next to a big stone|in a corner].
{hero} [held it close|picked it up] and said, "Thank you, ^{friend}. You are a [good|true|great] friend."
| {hero} was so happy that {hero.they} gave ^{friend} a big hug.
From then on, {hero} always [looked after|took good care of] the ^{toy}.
| After that day, {hero} never lost the ^{toy} again.
|
"""

HIDDEN_GIFT = """
@alone
{hero.They} had a [good|dear] friend named {friend}.
| {hero.Their} best friend was {friend.a} named {friend}.
Soon it would be {friend}'s birthday, so {hero} [got|bought|found] {toy.a} for {friend.them}.
| {friend}'s birthday was coming, and {hero} had a gift: it was {toy.a}.
{hero} hid the gift {spot.at} {spot}, [so that no one could see it|where no one would look].
| "No one must see it," said {hero}, and hid it {spot.at} {spot}.

Many days [went by|passed].
|
At last the big day came, but {hero} [did not know|could not remember] where the ^{toy} was!
| When the birthday came, {hero} [wanted to get|went to get] the ^{toy}, but where was it?
{hero.They} looked {spot2.at} {spot2}. It was not there.
| {hero.They} looked {spot2.at} {spot2}, but there was only [dust|an old shoe|a little spider].
|
{hero.Their} {elder} said, "Close your eyes and think."
| "Sit down and think," said {hero.their} {elder}. "You will remember."
{hero} thought and thought. "I know!" {hero.they} [said|shouted]. "I put it {spot.at} ^{spot}!"
| {hero} closed {hero.their} eyes. Then {hero.they} [smiled|laughed]. "Yes! It is {spot.at} ^{spot}!"

{hero} ran and [took|pulled] out the ^{toy.colour} ^{toy}.
| And there it was, the ^{toy.colour} ^{toy}!
{hero.They} took it to the party and said, "Happy birthday, ^{friend}!"
| Then {hero.they} ran to the party. "This is for you, ^{friend}," {hero.they} said.
{friend} [loved|was very happy with] the gift and [played with it all day|gave {hero} a big hug].
| "What a [nice|lovely|pretty] ^{toy}!" said {friend}. "Thank you, ^{hero}!"
@smile
"""

GUESS_THE_BOX = """
@pair
{one_day}, {friend} put {toy.a} in a {box} and [closed it well|covered it].
| {one_day}, {friend} had a [fun|clever] idea. {friend.They} put {toy.a} in a {box}.
{friend.They} [took|carried] it to {hero}'s house [and knocked on the door|to play a game].
|

"Guess what is in my ^{box}!" said {friend}.
| "Look at my ^{box}," said {friend}. "Can you guess what is in it?"
{hero} [shook it|listened|looked at it]. "Is it {food.a}?" {hero.they} asked.
| "Hmm," said {hero}. "Can I eat it? Is it {food.a}?"
"No," [said|laughed] ^{friend}. "You cannot eat it."
| "No, no," said ^{friend}. "It is not something to eat."
"Is it {toy2.a}?" asked ^{hero}.
"No, it is not ^{toy2.colour}," said {friend}. "It is ^{toy.colour}, and you can play with it."
| "No," said {friend}. "You can play with it, but it is ^{toy.colour}."
{hero} thought [very hard|about it|for a while]. "Then it is {toy.article} ^{toy.colour} ^{toy}!"
| "I know!" said {hero}. "It is {toy.article} ^{toy.colour} ^{toy}!"

{friend} [clapped|laughed] and opened the ^{box}.
| "Yes!" said {friend}, and [opened|turned over] the ^{box}.
Out came the ^{toy.colour} ^{toy}.
"It is a gift for you, ^{hero}," said {friend}.
| "You are so clever, ^{hero}," said {friend}. "Now we can play with it."
They played with the ^{toy} [until dark|until dinner|all afternoon].
|
@smile
"""

TREASURE_MAP = """
@pair
{one_day}, they found an old map {place3.at} {place3}.
| {one_day}, {hero}'s {elder} gave them an old map.
The map said, "First go to the {place}. Then go to the {place2}. [There you will find|Look there for] a {box}."
| "Look," said {hero}. "First we go to the {place} and then to the {place2}. We will find a {box} there."

They [took some bread|put on their boots|packed some food] and went to the ^{place}.
| So they [walked and walked|sang and walked] until they came to the ^{place}.
There they met {animal.a}. "Where are you going now?" it asked.
| There, {animal.a} came up to them. "Where are you going now?" it asked.
"Now we must go to the ^{place2}," said {hero}.
| "Now we are going to the ^{place2}," said {friend}.
"Then I will come with you," said the ^{animal}.
| So the ^{animal} [came with them|went with them and showed them the way].

When they came to the ^{place2}, {friend} found an old ^{box} [under a stone|in a corner|behind some leaves].
| When they came to the ^{place2}, they looked everywhere. At last, they found an old ^{box}.
In it were {number} {shells} and {toy.a}.
| It was full of {shells}, and there was {toy.a} too.
{hero} kept the {toy}, and {friend} kept all the ^{shells}.
| "You may have the {toy}," said {friend}, "and I will keep the ^{shells}."
@smile
"""

COUNTING = """
{one_day}, {hero.a} named {hero} went to the {place} to [look for|find] {shells}.
| Once upon a time, {hero.a} named {hero} went to the {place} to [look for|find] {shells}.
| Once upon a time, there was {hero.a} named {hero} who liked {shells}. {one_day}, {hero.they} went to the {place}.
{hero.They} found {number} {shells} and put them in {box.a}.
| There {hero.they} found {number} [pretty|fine|little] {shells} and put them in {box.a}.
{hero.They} wanted to [show|bring] them to a friend named {friend}.
| "My friend {friend} [will like|must see] them," {hero.they} said.

But on the way, {hero} [fell down|fell over a stick], and the ^{shells} fell out.
| On the way home, {hero} [ran too fast|did not look] and fell. All the ^{shells} fell out.
{hero} sat down and [cried|was very sad].
|
{friend} came along and asked, "How many did you have?"
| Just then, {friend} came along and said, "Do not be sad. How many were there?"
"There were ^{number}," said ^{hero}.
| "I had ^{number}," said ^{hero}.

They looked [here and there|everywhere] and [counted out loud|counted them one by one].
| "Let us find them," said {friend}, and they [looked and counted|began to count].
Soon all ^{number} ^{shells} were in the ^{box.colour} ^{box} again.
| At last, there were ^{number} ^{shells} in the ^{box.colour} ^{box} again.
{hero} gave the [biggest|prettiest|best] one to ^{friend}.
| "Please take one, ^{friend}," said {hero}. "You helped me so much."
Then they went home [hand in hand|together|and sang a song].
|
@smile
"""

HIDE_AND_SEEK = """
@trio
{one_day}, they played hide and seek in {hero}'s house. {hero} counted to {number}.
| One [cold|rainy] day, they played hide and seek at {hero}'s house. {hero} counted to {number}.
{friend} [hid|ran and hid] {spot.at} {spot}, and {friend2} [hid|sat down] {spot2.at} {spot2}.
| {friend} was very quick and hid {spot.at} {spot}. {friend2} hid {spot2.at} {spot2}.

"I am coming!" [called|said|shouted] ^{hero}.
| "Now I will find you!" [called|said|shouted] ^{hero}.
First {hero.they} looked in the [kitchen|bathroom], but no one was there.
|
Then {hero.they} heard a [little|soft] [laugh|sound]. It came from {friend}, who was still {spot.at} ^{spot}.
| Then a [little|small] foot [moved|could be seen]. It was {friend}, who was still {spot.at} ^{spot}.
"I see you, ^{friend}!" said {hero}. "But where is ^{friend2}?"
| "I found you, ^{friend}!" said {hero}. "Now I must find ^{friend2}."
{hero} and ^{friend} looked and looked, but {friend2} was still {spot2.at} ^{spot2} and [made no sound|sat very still].
| {friend2} was still {spot2.at} ^{spot2} and [made no sound|sat very still].
At last, {hero} gave up. "Come out, ^{friend2}! You [win|are the best]!"
| "You can come out now, ^{friend2}!" called {hero}. "You [win|are the winner]!"

Out came ^{friend2}, and everyone [laughed|clapped].
"[It was dark|I was so quiet] {spot2.at} ^{spot2}," said {friend2}. "I liked it."
| "No one looked {spot2.at} ^{spot2}," said {friend2} [and laughed|with a big smile].
Then {hero}'s {elder} gave them {food.a} [each|to share].
|
They ate and played again until [dinner|bedtime|it was dark].
|
"""
